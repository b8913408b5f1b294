-- Adds renditions: small copies of images, made on demand. Run by `pixyproxy db init`, which may run it again after it was
-- cut off half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- The table is the queue, too. A row is 'requested' or 'planned' (nobody waits for it), and a worker may claim it from
-- due_at on; the claim sets due_at to the end of its lease. A row that is 'failed' may be requested again from due_at on.
-- The columns from sha256 to height are set where it is 'made'. edge is the length of the square's edge in pixels.
-- There is no foreign key: the rows of a deleted image say which bytes are still to be deleted.
CREATE TABLE IF NOT EXISTS renditions (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  image_guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  edge SMALLINT UNSIGNED NOT NULL,
  state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  owner CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  due_at DATETIME(6) NOT NULL,
  attempts INT UNSIGNED NOT NULL,
  sha256 CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
  size_bytes INT UNSIGNED NULL,
  width SMALLINT UNSIGNED NULL,
  height SMALLINT UNSIGNED NULL,
  error TEXT CHARACTER SET ascii COLLATE ascii_bin NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT renditions_U1 UNIQUE (image_guid, edge),
  INDEX renditions_I1 (state, due_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- A ThumbHash; NULL until it is computed. A row of renditions with the edge 0 stands for one that is to be computed.
-- MySQL has no ADD COLUMN IF NOT EXISTS: the statement is prepared only where the column is missing.
SET @is_missing = (
  SELECT COUNT(*) = 0 FROM information_schema.columns
  WHERE table_schema = DATABASE() AND table_name = 'images' AND column_name = 'placeholder'
);
SET @statement = IF(@is_missing, 'ALTER TABLE images ADD COLUMN placeholder VARBINARY(32) NULL', 'DO 0');
PREPARE change_images FROM @statement;
EXECUTE change_images;
DEALLOCATE PREPARE change_images;
