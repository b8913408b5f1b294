-- Keeps what each image cost, and sums it up. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- cost_nano_usd is in billionths of a US dollar, by the price list of that name; both are NULL where the cost is unknown.
-- is_accounted tells whether the cost was determined, as far as it can be known, and counted in the tables below: servers
-- of earlier releases leave 0.
ALTER TABLE images ADD COLUMN cost_nano_usd INTEGER NULL;
ALTER TABLE images ADD COLUMN price_list TEXT NULL;
ALTER TABLE images ADD COLUMN is_accounted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX images_I4 ON images (is_accounted);

-- The model that a generation was submitted for; NULL for those that earlier releases submitted.
ALTER TABLE generations ADD COLUMN model TEXT NULL;

-- What was spent, by day in UTC (YYYY-MM-DD), author and model. nano_usd is the sum of the known costs.
CREATE TABLE usage_days (
  day TEXT NOT NULL,
  author_id INTEGER NOT NULL,
  model TEXT NOT NULL,
  images INTEGER NOT NULL,
  images_without_cost INTEGER NOT NULL,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  nano_usd INTEGER NOT NULL,
  PRIMARY KEY (day, author_id, model),
  CONSTRAINT usage_days_F1 FOREIGN KEY (author_id) REFERENCES users (id)
);
CREATE INDEX usage_days_I1 ON usage_days (author_id, day);

-- The same of the latest images, which are not yet added to usage_days.
CREATE TABLE usage_tail (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  day TEXT NOT NULL,
  author_id INTEGER NOT NULL,
  model TEXT NOT NULL,
  images INTEGER NOT NULL,
  images_without_cost INTEGER NOT NULL,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  nano_usd INTEGER NOT NULL
);
