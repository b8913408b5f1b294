-- Adds renditions: small copies of images, made on demand. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- The table is the queue, too. A row is 'requested' or 'planned' (nobody waits for it), and a worker may claim it from
-- due_at on; the claim sets due_at to the end of its lease. A row that is 'failed' may be requested again from due_at on.
-- The columns from sha256 to height are set where it is 'made'. edge is the length of the square's edge in pixels.
-- There is no foreign key: the rows of a deleted image say which bytes are still to be deleted.
CREATE TABLE renditions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  image_guid TEXT NOT NULL,
  edge INTEGER NOT NULL,
  state TEXT NOT NULL,
  owner TEXT NOT NULL,
  due_at DATETIME NOT NULL,
  attempts INTEGER NOT NULL,
  sha256 TEXT NULL,
  size_bytes INTEGER NULL,
  width INTEGER NULL,
  height INTEGER NULL,
  error TEXT NULL,
  updated_at DATETIME NOT NULL,
  CONSTRAINT renditions_U1 UNIQUE (image_guid, edge)
);
-- A ThumbHash; NULL until it is computed. A row of renditions with the edge 0 stands for one that is to be computed.
ALTER TABLE images ADD COLUMN placeholder BLOB NULL;
CREATE INDEX renditions_I1 ON renditions (state, due_at);
