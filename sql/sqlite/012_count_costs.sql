-- Keeps what each image cost. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- cost_nano_usd is in billionths of a US dollar, by the price list of that name; both are NULL where the cost is unknown.
-- is_accounted tells whether the cost was determined, as far as it can be known: servers of earlier releases leave 0.
ALTER TABLE images ADD COLUMN cost_nano_usd INTEGER NULL;
ALTER TABLE images ADD COLUMN price_list TEXT NULL;
ALTER TABLE images ADD COLUMN is_accounted INTEGER NOT NULL DEFAULT 0;
CREATE INDEX images_I4 ON images (is_accounted);
