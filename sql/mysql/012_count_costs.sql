-- Keeps what each image cost, and sums it up. Run by `pixyproxy db init`, which may run it again after it was cut off half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- cost_nano_usd is in billionths of a US dollar, by the price list of that name; both are NULL where the cost is unknown.
-- is_accounted tells whether the cost was determined, as far as it can be known, and counted in the tables below: servers
-- of earlier releases leave 0.
-- MySQL has no ADD COLUMN IF NOT EXISTS: the statement is prepared only where the columns are missing.
SET @is_missing = (
  SELECT COUNT(*) = 0 FROM information_schema.columns
  WHERE table_schema = DATABASE() AND table_name = 'images' AND column_name = 'is_accounted'
);
SET @statement = IF(@is_missing, '
  ALTER TABLE images
    ADD COLUMN cost_nano_usd BIGINT UNSIGNED NULL,
    ADD COLUMN price_list VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN is_accounted TINYINT UNSIGNED NOT NULL DEFAULT 0,
    ADD INDEX images_I4 (is_accounted)
', 'DO 0');
PREPARE change_images FROM @statement;
EXECUTE change_images;
DEALLOCATE PREPARE change_images;

-- The model that a generation was submitted for; NULL for those that earlier releases submitted.
SET @is_missing = (
  SELECT COUNT(*) = 0 FROM information_schema.columns
  WHERE table_schema = DATABASE() AND table_name = 'generations' AND column_name = 'model'
);
SET @statement = IF(@is_missing, '
  ALTER TABLE generations ADD COLUMN model VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL
', 'DO 0');
PREPARE change_generations FROM @statement;
EXECUTE change_generations;
DEALLOCATE PREPARE change_generations;

-- What was spent, by day in UTC (YYYY-MM-DD), author and model. nano_usd is the sum of the known costs.
CREATE TABLE IF NOT EXISTS usage_days (
  day CHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  author_id BIGINT UNSIGNED NOT NULL,
  model VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  images BIGINT UNSIGNED NOT NULL,
  images_without_cost BIGINT UNSIGNED NOT NULL,
  input_tokens BIGINT UNSIGNED NOT NULL,
  output_tokens BIGINT UNSIGNED NOT NULL,
  nano_usd BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (day, author_id, model),
  CONSTRAINT usage_days_F1 FOREIGN KEY (author_id) REFERENCES users (id),
  INDEX usage_days_I1 (author_id, day)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The same of the latest images, which are not yet added to usage_days: each transaction that stores an image adds a row,
-- so that none waits for another one's.
CREATE TABLE IF NOT EXISTS usage_tail (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  day CHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  author_id BIGINT UNSIGNED NOT NULL,
  model VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  images BIGINT UNSIGNED NOT NULL,
  images_without_cost BIGINT UNSIGNED NOT NULL,
  input_tokens BIGINT UNSIGNED NOT NULL,
  output_tokens BIGINT UNSIGNED NOT NULL,
  nano_usd BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
