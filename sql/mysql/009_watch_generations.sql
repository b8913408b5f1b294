-- Makes generations a resource that is listed, watched and cancelled. Run by `pixyproxy db init`, which may run it again
-- after it was cut off half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- A generation that is detached goes on while it is queued, whoever has stopped waiting for it. partials counts the
-- partial images that have come so far.
-- MySQL has no ADD COLUMN IF NOT EXISTS: the statement is prepared only where the columns are missing.
SET @is_missing = (
  SELECT COUNT(*) = 0 FROM information_schema.columns
  WHERE table_schema = DATABASE() AND table_name = 'generations' AND column_name = 'is_detached'
);
SET @statement = IF(@is_missing, '
  ALTER TABLE generations
    ADD COLUMN is_detached TINYINT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN partials TINYINT UNSIGNED NOT NULL DEFAULT 0,
    ADD INDEX generations_I4 (state, created_at, id),
    ADD INDEX generations_I5 (author_id, state, created_at, id)
', 'DO 0');
PREPARE change_generations FROM @statement;
EXECUTE change_generations;
DEALLOCATE PREPARE change_generations;

-- Partial images are deleted shortly after their generation has ended.
CREATE TABLE IF NOT EXISTS partial_images (
  generation_id BIGINT UNSIGNED NOT NULL,
  image_index TINYINT UNSIGNED NOT NULL,
  content_type VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  data MEDIUMBLOB NOT NULL,
  PRIMARY KEY (generation_id, image_index),
  CONSTRAINT partial_images_F1 FOREIGN KEY (generation_id) REFERENCES generations (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
