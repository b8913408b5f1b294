-- Makes generations the queue of requests. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- request is the CreateImage request without its request_id, in JSON; NULL in rows of the first release. call_id is the
-- id of the call in the log, and trace_headers, in JSON, continue its trace. deadline_at is when the caller stops
-- waiting; NULL for never. A row in the state queued may be claimed from not_before_at on; attempts counts its
-- submissions. error is the error that ended the last attempt, in JSON.
ALTER TABLE generations ADD COLUMN request TEXT NULL;
ALTER TABLE generations ADD COLUMN call_id TEXT NOT NULL DEFAULT '';
ALTER TABLE generations ADD COLUMN trace_headers TEXT NOT NULL DEFAULT '{}';
ALTER TABLE generations ADD COLUMN deadline_at DATETIME NULL;
ALTER TABLE generations ADD COLUMN not_before_at DATETIME NOT NULL DEFAULT '1970-01-01 00:00:00.000000';
ALTER TABLE generations ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE generations ADD COLUMN submitted_at DATETIME NULL;
ALTER TABLE generations ADD COLUMN finished_at DATETIME NULL;
ALTER TABLE generations ADD COLUMN error TEXT NULL;
CREATE INDEX generations_I3 ON generations (state, author_id, not_before_at);
