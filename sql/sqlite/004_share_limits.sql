-- Creates the tables of limits that hold for all servers together. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- When the provider was asked, for PIXYPROXY_IMAGES_PER_MINUTE. id counts without gaps: whoever inserts the next number
-- has that turn, and nobody else can. Only the newest rows are kept, as many as images per minute.
CREATE TABLE IF NOT EXISTS provider_turns (
  id INTEGER PRIMARY KEY,
  taken_at DATETIME NOT NULL
);

-- Sign-ins that failed within PIXYPROXY_SIGN_IN_WINDOW. counter is a hash of what they are counted by: a name and an
-- address, or an address alone.
CREATE TABLE IF NOT EXISTS failed_sign_ins (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  counter TEXT NOT NULL,
  failed_at DATETIME NOT NULL
);
CREATE INDEX IF NOT EXISTS failed_sign_ins_I1 ON failed_sign_ins (counter, failed_at);
CREATE INDEX IF NOT EXISTS failed_sign_ins_I2 ON failed_sign_ins (failed_at);
