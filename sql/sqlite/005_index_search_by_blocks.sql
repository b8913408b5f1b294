-- Replaces image_terms and image_tags by the search index of pixyproxy/data/repositories/search_index.py. Run by
-- PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- What images are indexed under that were added, changed or deleted lately: one row an image. terms are those of its
-- prompt and its tags, each between line breaks. sealed_terms are all terms that image_postings has it under, NULL
-- where it never was there. No foreign key: what is known of a deleted image stays until its postings are gone.
CREATE TABLE IF NOT EXISTS image_tail (
  image_id INTEGER PRIMARY KEY,
  terms TEXT NOT NULL,
  sealed_terms TEXT NULL
);

-- Where a term is found: in which images of a block of 16,384 consecutive ids. posting is a list of 2-byte offsets, or
-- a bit for each image of the block.
CREATE TABLE IF NOT EXISTS image_postings (
  block INTEGER NOT NULL,
  term TEXT NOT NULL,
  posting BLOB NOT NULL,
  PRIMARY KEY (block, term)
) WITHOUT ROWID;

-- The same of a block that still grows, for batches of 512 ids: each row holds the postings of many terms, in a text of
-- pixyproxy/data/repositories/batches.py. They are moved into image_postings when the block is full.
CREATE TABLE IF NOT EXISTS image_batches (
  block INTEGER NOT NULL,
  bucket INTEGER NOT NULL,
  batch INTEGER NOT NULL,
  postings TEXT NOT NULL,
  PRIMARY KEY (block, bucket, batch)
) WITHOUT ROWID;

-- The blocks that have postings, and between which times their images were made, in microseconds since 1970: all of
-- them, and in bounds each run of 256.
CREATE TABLE IF NOT EXISTS image_blocks (
  block INTEGER PRIMARY KEY,
  oldest INTEGER NOT NULL,
  newest INTEGER NOT NULL,
  bounds BLOB NOT NULL,
  has_batches INTEGER NOT NULL
);

-- All images begin in the tail.
INSERT OR IGNORE INTO image_tail (image_id, terms)
SELECT images.id, CHAR(10)
  || COALESCE((SELECT GROUP_CONCAT('w' || term || CHAR(10), '') FROM image_terms WHERE image_id = images.id), '')
  || COALESCE((SELECT GROUP_CONCAT('t' || tag_key || CHAR(10), '') FROM image_tags WHERE image_id = images.id), '')
FROM images;

DROP TABLE image_terms;
DROP TABLE image_tags;
