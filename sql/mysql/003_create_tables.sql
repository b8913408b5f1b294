-- Creates the first tables. Run by `pixyproxy db init`, which may run it again after it was cut off half-way.

-- Full internationalisation: every script, emoji included. Text that people give is stored and compared exactly
-- (utf8mb4_bin): in a language-aware collation of both servers every emoji equals every other. What is compared
-- more loosely has a key column, worked out by PixyProxy, so that every database finds the same. Key columns hold
-- bytes, because utf8mb4_bin takes trailing spaces for nothing.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

CREATE TABLE IF NOT EXISTS migrations (
  id INT UNSIGNED NOT NULL AUTO_INCREMENT,
  guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  version INT UNSIGNED NOT NULL,
  applied_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT migrations_U1 UNIQUE (guid),
  CONSTRAINT migrations_U2 UNIQUE (version)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Small values that all servers on this database share, such as the key of the page tokens.
CREATE TABLE IF NOT EXISTS server_values (
  id INT UNSIGNED NOT NULL AUTO_INCREMENT,
  guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  name VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  value VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT server_values_U1 UNIQUE (guid),
  CONSTRAINT server_values_U2 UNIQUE (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- removed_at is set where a user was removed who has made images: they keep their author's name.
CREATE TABLE IF NOT EXISTS users (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  username VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  username_key VARBINARY(768) NOT NULL,
  password VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  class_key VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  removed_at DATETIME(6) NULL,
  PRIMARY KEY (id),
  CONSTRAINT users_U1 UNIQUE (guid),
  CONSTRAINT users_U2 UNIQUE (username_key)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- tags is the list as it was given, in JSON; visibility is 1 for private and 2 for public, as in the API.
CREATE TABLE IF NOT EXISTS images (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  author_id BIGINT UNSIGNED NOT NULL,
  filename VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  filename_key VARBINARY(3060) NOT NULL,
  prompt MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  tags TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  visibility TINYINT UNSIGNED NOT NULL,
  content_type VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  size_bytes BIGINT UNSIGNED NOT NULL,
  sha256 CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  width INT UNSIGNED NOT NULL,
  height INT UNSIGNED NOT NULL,
  model VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  input_tokens BIGINT UNSIGNED NULL,
  output_tokens BIGINT UNSIGNED NULL,
  total_tokens BIGINT UNSIGNED NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT images_U1 UNIQUE (guid),
  CONSTRAINT images_F1 FOREIGN KEY (author_id) REFERENCES users (id),
  INDEX images_I1 (created_at, id),
  INDEX images_I2 (author_id, created_at, id),
  INDEX images_I3 (visibility, created_at, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Where a tag is found, newest first; made from images.tags.
CREATE TABLE IF NOT EXISTS image_tags (
  tag_key VARBINARY(768) NOT NULL,
  created_at DATETIME(6) NOT NULL,
  image_id BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (tag_key, created_at, image_id),
  CONSTRAINT image_tags_F1 FOREIGN KEY (image_id) REFERENCES images (id) ON DELETE CASCADE,
  INDEX image_tags_I1 (image_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Where a search term is found, newest first; made from images.prompt by the rules of pixyproxy/core/search_terms.py.
CREATE TABLE IF NOT EXISTS image_terms (
  term VARBINARY(256) NOT NULL,
  created_at DATETIME(6) NOT NULL,
  image_id BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (term, created_at, image_id),
  CONSTRAINT image_terms_F1 FOREIGN KEY (image_id) REFERENCES images (id) ON DELETE CASCADE,
  INDEX image_terms_I1 (image_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row a generation, written before the provider is asked. request_id is the author's idempotency key; NULL where
-- none was given, and any number of those may stand beside one another. fingerprint tells whether a second request
-- under the same key is the same request. owner is whoever works on it, until the lease runs out. No index begins with
-- author_id and goes on with a column that may be NULL: MySQL 9.7 then takes the foreign key for kept wherever that
-- column is NULL.
CREATE TABLE IF NOT EXISTS generations (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  author_id BIGINT UNSIGNED NOT NULL,
  request_id CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NULL,
  fingerprint CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  image_guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  owner CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  lease_expires_at DATETIME(6) NOT NULL,
  created_at DATETIME(6) NOT NULL,
  updated_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT generations_U1 UNIQUE (guid),
  CONSTRAINT generations_U2 UNIQUE (request_id, author_id),
  CONSTRAINT generations_U3 UNIQUE (image_guid),
  CONSTRAINT generations_F1 FOREIGN KEY (author_id) REFERENCES users (id),
  INDEX generations_I1 (owner),
  INDEX generations_I2 (author_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Images whose detail is deleted and whose bytes may still be there; a row goes when they are gone.
CREATE TABLE IF NOT EXISTS deletions (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  image_guid CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  created_at DATETIME(6) NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT deletions_U1 UNIQUE (guid),
  CONSTRAINT deletions_U2 UNIQUE (image_guid)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
