-- Creates the tables of limits that hold for all servers together. Run by `pixyproxy db init`, which may run it again
-- after it was cut off half-way.

SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- When the provider was asked, for PIXYPROXY_IMAGES_PER_MINUTE. id counts without gaps: whoever inserts the next number
-- has that turn, and nobody else can. Only the newest rows are kept, as many as images per minute.
CREATE TABLE IF NOT EXISTS provider_turns (
  id BIGINT UNSIGNED NOT NULL,
  taken_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Sign-ins that failed within PIXYPROXY_SIGN_IN_WINDOW. counter is a hash of what they are counted by: a name and an
-- address, or an address alone.
CREATE TABLE IF NOT EXISTS failed_sign_ins (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  counter CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  failed_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  INDEX failed_sign_ins_I1 (counter, failed_at),
  INDEX failed_sign_ins_I2 (failed_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
