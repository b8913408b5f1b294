-- Sums up what was spent by month too. Run by `pixyproxy db init`, which may run it again after it was cut off half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- The rows of usage_days summed up: by day (YYYY-MM-DD) for everybody, where author_id is 0, and by month (YYYY-MM) for each
-- author.
CREATE TABLE IF NOT EXISTS usage_sums (
  period VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  author_id BIGINT UNSIGNED NOT NULL,
  model VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  images BIGINT UNSIGNED NOT NULL,
  images_without_cost BIGINT UNSIGNED NOT NULL,
  input_tokens BIGINT UNSIGNED NOT NULL,
  output_tokens BIGINT UNSIGNED NOT NULL,
  nano_usd BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (period, author_id, model)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

REPLACE INTO usage_sums
  SELECT day, 0, model, SUM(images), SUM(images_without_cost), SUM(input_tokens), SUM(output_tokens), SUM(nano_usd)
  FROM usage_days GROUP BY day, model;
REPLACE INTO usage_sums
  SELECT LEFT(day, 7), author_id, model, SUM(images), SUM(images_without_cost), SUM(input_tokens), SUM(output_tokens),
    SUM(nano_usd)
  FROM usage_days GROUP BY LEFT(day, 7), author_id, model;
