-- Adds the outbox of the audit log. Run by `pixyproxy db init`, which may run it again after it was cut off half-way.

-- Full internationalisation, as in 003.
SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- Lines that are not in the audit log yet, as JSON without the outcome, which follows from error: JSON, too, and NULL for OK.
-- The transaction that makes a change adds its line; a generation worker deletes it once the audit log has it.
CREATE TABLE IF NOT EXISTS audit_outbox (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  line TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  error TEXT CHARACTER SET ascii COLLATE ascii_bin NULL,
  PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
