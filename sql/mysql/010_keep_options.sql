-- Keeps how each image was made. Run by `pixyproxy db init`, which may run it again after it was cut off half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- options are those that were used, in JSON; NULL where they are not known. origin is 1 for generated, 2 for edited and 3
-- for imported images. source_guids, in JSON, are the images that it was made from; NULL for none. The tokens are parts of
-- input_tokens and output_tokens.
-- MySQL has no ADD COLUMN IF NOT EXISTS: the statement is prepared only where the columns are missing.
SET @is_missing = (
  SELECT COUNT(*) = 0 FROM information_schema.columns
  WHERE table_schema = DATABASE() AND table_name = 'images' AND column_name = 'origin'
);
SET @statement = IF(@is_missing, '
  ALTER TABLE images
    ADD COLUMN options VARCHAR(1024) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN origin TINYINT UNSIGNED NOT NULL DEFAULT 1,
    ADD COLUMN source_guids VARCHAR(1024) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN input_text_tokens BIGINT UNSIGNED NULL,
    ADD COLUMN input_image_tokens BIGINT UNSIGNED NULL,
    ADD COLUMN output_text_tokens BIGINT UNSIGNED NULL,
    ADD COLUMN output_image_tokens BIGINT UNSIGNED NULL
', 'DO 0');
PREPARE change_images FROM @statement;
EXECUTE change_images;
DEALLOCATE PREPARE change_images;
