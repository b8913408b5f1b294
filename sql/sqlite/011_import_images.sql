-- Makes imports of images leave nothing when they are interrupted. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- Imported images whose bytes may be stored, and whose detail is not committed. The commit of the detail deletes the
-- row. A row past expires_at is one of a dead server, whose bytes are deleted.
CREATE TABLE IF NOT EXISTS pending_imports (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  guid TEXT NOT NULL,
  image_guid TEXT NOT NULL,
  expires_at DATETIME NOT NULL,
  created_at DATETIME NOT NULL,
  CONSTRAINT pending_imports_U1 UNIQUE (guid),
  CONSTRAINT pending_imports_U2 UNIQUE (image_guid)
);
