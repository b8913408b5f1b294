-- Keeps what each image cost. Run by `pixyproxy db init`, which may run it again after it was cut off half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- cost_nano_usd is in billionths of a US dollar, by the price list of that name; both are NULL where the cost is unknown.
-- is_accounted tells whether the cost was determined, as far as it can be known: servers of earlier releases leave 0.
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
