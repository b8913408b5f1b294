-- Creates the table of copies. Run by PixyProxy when it opens the database.

-- Full internationalisation, as in 003.
PRAGMA encoding = 'UTF-8';

-- Which images `pixyproxy images copy` has copied into which store, and verified there. A row outlives its image, until
-- the copy is deleted as well.
CREATE TABLE IF NOT EXISTS image_copies (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  guid TEXT NOT NULL,
  store_guid TEXT NOT NULL,
  image_guid TEXT NOT NULL,
  created_at DATETIME NOT NULL,
  CONSTRAINT image_copies_U1 UNIQUE (guid),
  CONSTRAINT image_copies_U2 UNIQUE (store_guid, image_guid)
);
