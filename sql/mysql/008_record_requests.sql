-- Makes generations the queue of requests. Run by `pixyproxy db init`, which may run it again after it was cut off
-- half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- request is the CreateImage request without its request_id, in JSON; NULL in rows of the first release. call_id is the
-- id of the call in the log, and trace_headers, in JSON, continue its trace. deadline_at is when the caller stops
-- waiting; NULL for never. A row in the state queued may be claimed from not_before_at on; attempts counts its
-- submissions. error is the error that ended the last attempt, in JSON.
-- MySQL has no ADD COLUMN IF NOT EXISTS: the statement is prepared only where the columns are missing.
SET @is_missing = (
  SELECT COUNT(*) = 0 FROM information_schema.columns
  WHERE table_schema = DATABASE() AND table_name = 'generations' AND column_name = 'request'
);
SET @statement = IF(@is_missing, '
  ALTER TABLE generations
    ADD COLUMN request MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
    ADD COLUMN call_id VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT '''',
    ADD COLUMN trace_headers VARCHAR(2048) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT ''{}'',
    ADD COLUMN deadline_at DATETIME(6) NULL,
    ADD COLUMN not_before_at DATETIME(6) NOT NULL DEFAULT ''1970-01-01 00:00:00'',
    ADD COLUMN attempts INT UNSIGNED NOT NULL DEFAULT 0,
    ADD COLUMN submitted_at DATETIME(6) NULL,
    ADD COLUMN finished_at DATETIME(6) NULL,
    ADD COLUMN error TEXT CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD INDEX generations_I3 (state, author_id, not_before_at)
', 'DO 0');
PREPARE change_generations FROM @statement;
EXECUTE change_generations;
DEALLOCATE PREPARE change_generations;
