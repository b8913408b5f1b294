-- Creates the table of copies. Run by `pixyproxy db init`, which may run it again after it was cut off half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- Which images `pixyproxy images copy` has copied into which store, and verified there. A row outlives its image, until
-- the copy is deleted as well.
CREATE TABLE IF NOT EXISTS image_copies (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  store_guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  image_guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  created_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT image_copies_U1 UNIQUE (guid),
  CONSTRAINT image_copies_U2 UNIQUE (store_guid, image_guid)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
