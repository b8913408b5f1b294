-- Creates the table of sign-ins that succeeded. Run by PixyProxy when it opens the database.

-- Full internationalisation, as in 003.
PRAGMA encoding = 'UTF-8';

-- When a name last signed in from an address, to the day. origin is a hash of both.
CREATE TABLE IF NOT EXISTS past_sign_ins (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  origin TEXT NOT NULL,
  signed_in_at DATETIME NOT NULL,
  CONSTRAINT past_sign_ins_U1 UNIQUE (origin)
);
CREATE INDEX IF NOT EXISTS past_sign_ins_I1 ON past_sign_ins (signed_in_at);
