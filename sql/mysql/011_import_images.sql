-- Makes imports of images leave nothing when they are interrupted. Run by `pixyproxy db init`, which may run it again
-- after it was cut off half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- Imported images whose bytes may be stored, and whose detail is not committed. The commit of the detail deletes the
-- row. A row past expires_at is one of a dead server, whose bytes are deleted.
CREATE TABLE IF NOT EXISTS pending_imports (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  image_guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  expires_at DATETIME(6) NOT NULL,
  created_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT pending_imports_U1 UNIQUE (guid),
  CONSTRAINT pending_imports_U2 UNIQUE (image_guid)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
