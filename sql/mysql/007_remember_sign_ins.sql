-- Creates the table of sign-ins that succeeded. Run by `pixyproxy db init`, which may run it again after it was cut
-- off half-way.

SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- When a name last signed in from an address, to the day. origin is a hash of both.
CREATE TABLE IF NOT EXISTS past_sign_ins (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  origin CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  signed_in_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT past_sign_ins_U1 UNIQUE (origin),
  INDEX past_sign_ins_I1 (signed_in_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
