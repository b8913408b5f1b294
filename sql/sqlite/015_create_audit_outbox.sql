-- Adds the outbox of the audit log. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- Lines that are not in the audit log yet, as JSON without the outcome, which follows from error: JSON, too, and NULL for OK.
-- The transaction that makes a change adds its line; a generation worker deletes it once the audit log has it.
CREATE TABLE audit_outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  line TEXT NOT NULL,
  error TEXT NULL
);
