-- Sums up what was spent by month too. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- The rows of usage_days summed up: by day (YYYY-MM-DD) for everybody, where author_id is 0, and by month (YYYY-MM) for each
-- author.
CREATE TABLE usage_sums (
  period TEXT NOT NULL,
  author_id INTEGER NOT NULL,
  model TEXT NOT NULL,
  images INTEGER NOT NULL,
  images_without_cost INTEGER NOT NULL,
  input_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL,
  nano_usd INTEGER NOT NULL,
  PRIMARY KEY (period, author_id, model)
);

INSERT INTO usage_sums
  SELECT day, 0, model, SUM(images), SUM(images_without_cost), SUM(input_tokens), SUM(output_tokens), SUM(nano_usd)
  FROM usage_days GROUP BY day, model;
INSERT INTO usage_sums
  SELECT substr(day, 1, 7), author_id, model, SUM(images), SUM(images_without_cost), SUM(input_tokens),
    SUM(output_tokens), SUM(nano_usd)
  FROM usage_days GROUP BY substr(day, 1, 7), author_id, model;
