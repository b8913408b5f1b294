-- Adds quotas: limits of what a user may spend. Run by `pixyproxy db init`, which may run it again after it was cut off
-- half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- The limits of users. NULL takes the server's default, -1 is unlimited. A claim changes and so locks the row
-- of its author, so that of two claims of an author the second one sees the first.
CREATE TABLE IF NOT EXISTS quotas (
  author_id BIGINT UNSIGNED NOT NULL,
  nano_usd_per_day BIGINT NULL,
  images_per_day BIGINT NULL,
  generations_at_once BIGINT NULL,
  claims BIGINT UNSIGNED NOT NULL DEFAULT 0,
  PRIMARY KEY (author_id),
  CONSTRAINT quotas_F1 FOREIGN KEY (author_id) REFERENCES users (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The most that a submitted generation may cost; NULL where that is unknown.
-- MySQL has no ADD COLUMN IF NOT EXISTS: the statement is prepared only where the column is missing.
SET @is_missing = (
  SELECT COUNT(*) = 0 FROM information_schema.columns
  WHERE table_schema = DATABASE() AND table_name = 'generations' AND column_name = 'reserved_nano_usd'
);
SET @statement = IF(@is_missing, '
  ALTER TABLE generations
    ADD COLUMN reserved_nano_usd BIGINT UNSIGNED NULL,
    ADD INDEX generations_I6 (author_id, state, finished_at)
', 'DO 0');
PREPARE change_generations FROM @statement;
EXECUTE change_generations;
DEALLOCATE PREPARE change_generations;

-- What quotas count for images whose cost is unknown: the most that they may have cost.
SET @is_missing = (
  SELECT COUNT(*) = 0 FROM information_schema.columns
  WHERE table_schema = DATABASE() AND table_name = 'usage_days' AND column_name = 'assumed_nano_usd'
);
SET @statement = IF(@is_missing, '
  ALTER TABLE usage_days ADD COLUMN assumed_nano_usd BIGINT UNSIGNED NOT NULL DEFAULT 0
', 'DO 0');
PREPARE change_usage_days FROM @statement;
EXECUTE change_usage_days;
DEALLOCATE PREPARE change_usage_days;
SET @is_missing = (
  SELECT COUNT(*) = 0 FROM information_schema.columns
  WHERE table_schema = DATABASE() AND table_name = 'usage_tail' AND column_name = 'assumed_nano_usd'
);
SET @statement = IF(@is_missing, '
  ALTER TABLE usage_tail ADD COLUMN assumed_nano_usd BIGINT UNSIGNED NOT NULL DEFAULT 0
', 'DO 0');
PREPARE change_usage_tail FROM @statement;
EXECUTE change_usage_tail;
DEALLOCATE PREPARE change_usage_tail;
