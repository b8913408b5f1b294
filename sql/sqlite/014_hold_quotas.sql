-- Adds quotas: limits of what a user may spend. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- The limits of users. NULL takes the server's default, -1 is unlimited.
CREATE TABLE quotas (
  author_id INTEGER NOT NULL,
  nano_usd_per_day INTEGER NULL,
  images_per_day INTEGER NULL,
  generations_at_once INTEGER NULL,
  claims INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (author_id),
  CONSTRAINT quotas_F1 FOREIGN KEY (author_id) REFERENCES users (id)
);

-- The most that a submitted generation may cost; NULL where that is unknown.
ALTER TABLE generations ADD COLUMN reserved_nano_usd INTEGER NULL;
CREATE INDEX generations_I6 ON generations (author_id, state, finished_at);

-- What quotas count for images whose cost is unknown: the most that they may have cost.
ALTER TABLE usage_days ADD COLUMN assumed_nano_usd INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_tail ADD COLUMN assumed_nano_usd INTEGER NOT NULL DEFAULT 0;
