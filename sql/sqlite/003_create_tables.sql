-- Creates the first tables. Run by PixyProxy when it opens the database.

-- Full internationalisation: UTF-8, compared byte by byte, which SQLite does of itself. What is compared more loosely
-- has a key column, worked out by PixyProxy, so that every database finds the same.
PRAGMA encoding = 'UTF-8';

CREATE TABLE IF NOT EXISTS migrations (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  guid TEXT NOT NULL,
  version INTEGER NOT NULL,
  applied_at DATETIME NOT NULL,
  CONSTRAINT migrations_U1 UNIQUE (guid),
  CONSTRAINT migrations_U2 UNIQUE (version)
);

-- Small values that all servers on this database share, such as the key of the page tokens.
CREATE TABLE IF NOT EXISTS server_values (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  guid TEXT NOT NULL,
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  CONSTRAINT server_values_U1 UNIQUE (guid),
  CONSTRAINT server_values_U2 UNIQUE (name)
);

-- removed_at is set where a user was removed who has made images: they keep their author's name.
CREATE TABLE IF NOT EXISTS users (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  guid TEXT NOT NULL,
  username TEXT NOT NULL,
  username_key TEXT NOT NULL,
  password TEXT NOT NULL,
  class_key TEXT NOT NULL,
  created_at DATETIME NOT NULL,
  updated_at DATETIME NOT NULL,
  removed_at DATETIME NULL,
  CONSTRAINT users_U1 UNIQUE (guid),
  CONSTRAINT users_U2 UNIQUE (username_key)
);

-- tags is the list as it was given, in JSON; visibility is 1 for private and 2 for public, as in the API.
CREATE TABLE IF NOT EXISTS images (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  guid TEXT NOT NULL,
  author_id INTEGER NOT NULL,
  filename TEXT NOT NULL,
  filename_key TEXT NOT NULL,
  prompt TEXT NOT NULL,
  tags TEXT NOT NULL,
  visibility INTEGER NOT NULL,
  content_type TEXT NOT NULL,
  size_bytes INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  model TEXT NOT NULL,
  input_tokens INTEGER NULL,
  output_tokens INTEGER NULL,
  total_tokens INTEGER NULL,
  created_at DATETIME NOT NULL,
  updated_at DATETIME NOT NULL,
  CONSTRAINT images_U1 UNIQUE (guid),
  CONSTRAINT images_F1 FOREIGN KEY (author_id) REFERENCES users (id)
);
CREATE INDEX IF NOT EXISTS images_I1 ON images (created_at, id);
CREATE INDEX IF NOT EXISTS images_I2 ON images (author_id, created_at, id);
CREATE INDEX IF NOT EXISTS images_I3 ON images (visibility, created_at, id);

-- Where a tag is found, newest first; made from images.tags.
CREATE TABLE IF NOT EXISTS image_tags (
  tag_key TEXT NOT NULL,
  created_at DATETIME NOT NULL,
  image_id INTEGER NOT NULL,
  PRIMARY KEY (tag_key, created_at, image_id),
  CONSTRAINT image_tags_F1 FOREIGN KEY (image_id) REFERENCES images (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS image_tags_I1 ON image_tags (image_id);

-- Where a search term is found, newest first; made from images.prompt by the rules of pixyproxy/core/search_terms.py.
CREATE TABLE IF NOT EXISTS image_terms (
  term TEXT NOT NULL,
  created_at DATETIME NOT NULL,
  image_id INTEGER NOT NULL,
  PRIMARY KEY (term, created_at, image_id),
  CONSTRAINT image_terms_F1 FOREIGN KEY (image_id) REFERENCES images (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS image_terms_I1 ON image_terms (image_id);

-- One row a generation, written before the provider is asked. request_id is the author's idempotency key; NULL where
-- none was given, and any number of those may stand beside one another. fingerprint tells whether a second request
-- under the same key is the same request. owner is whoever works on it, until the lease runs out.
CREATE TABLE IF NOT EXISTS generations (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  guid TEXT NOT NULL,
  author_id INTEGER NOT NULL,
  request_id TEXT NULL,
  fingerprint TEXT NOT NULL,
  image_guid TEXT NOT NULL,
  state TEXT NOT NULL,
  owner TEXT NOT NULL,
  lease_expires_at DATETIME NOT NULL,
  created_at DATETIME NOT NULL,
  updated_at DATETIME NOT NULL,
  CONSTRAINT generations_U1 UNIQUE (guid),
  CONSTRAINT generations_U2 UNIQUE (request_id, author_id),
  CONSTRAINT generations_U3 UNIQUE (image_guid),
  CONSTRAINT generations_F1 FOREIGN KEY (author_id) REFERENCES users (id)
);
CREATE INDEX IF NOT EXISTS generations_I1 ON generations (owner);
CREATE INDEX IF NOT EXISTS generations_I2 ON generations (author_id);

-- Images whose detail is deleted and whose bytes may still be there; a row goes when they are gone.
CREATE TABLE IF NOT EXISTS deletions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  guid TEXT NOT NULL,
  image_guid TEXT NOT NULL,
  created_at DATETIME NOT NULL,
  CONSTRAINT deletions_U1 UNIQUE (guid),
  CONSTRAINT deletions_U2 UNIQUE (image_guid)
);
