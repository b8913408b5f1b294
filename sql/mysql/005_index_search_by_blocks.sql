-- Replaces image_terms and image_tags by the search index of pixyproxy/data/repositories/search_index.py. Run by
-- `pixyproxy db init`, which may run it again after it was cut off half-way.

SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci;
SET time_zone = '+00:00';

-- What images are indexed under that were added, changed or deleted lately: one row an image. terms are those of its
-- prompt and its tags, each between line breaks. sealed_terms are all terms that image_postings has it under, NULL
-- where it never was there. No foreign key: what is known of a deleted image stays until its postings are gone.
CREATE TABLE IF NOT EXISTS image_tail (
  image_id BIGINT UNSIGNED NOT NULL,
  terms MEDIUMBLOB NOT NULL,
  sealed_terms MEDIUMBLOB NULL,
  PRIMARY KEY (image_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Where a term is found: in which images of a block of 16,384 consecutive ids. posting is a list of 2-byte offsets, or
-- a bit for each image of the block.
CREATE TABLE IF NOT EXISTS image_postings (
  block BIGINT UNSIGNED NOT NULL,
  term VARBINARY(769) NOT NULL,
  posting BLOB NOT NULL,
  PRIMARY KEY (block, term)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The same of a block that still grows, for batches of 512 ids: each row holds the postings of many terms, in a text of
-- pixyproxy/data/repositories/batches.py. They are moved into image_postings when the block is full.
CREATE TABLE IF NOT EXISTS image_batches (
  block BIGINT UNSIGNED NOT NULL,
  bucket SMALLINT UNSIGNED NOT NULL,
  batch SMALLINT UNSIGNED NOT NULL,
  postings MEDIUMBLOB NOT NULL,
  PRIMARY KEY (block, bucket, batch)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The blocks that have postings, and between which times their images were made, in microseconds since 1970: all of
-- them, and in bounds each run of 256.
CREATE TABLE IF NOT EXISTS image_blocks (
  block BIGINT UNSIGNED NOT NULL,
  oldest BIGINT NOT NULL,
  newest BIGINT NOT NULL,
  bounds BLOB NOT NULL,
  has_batches TINYINT UNSIGNED NOT NULL,
  PRIMARY KEY (block)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Only where this script was cut off after its last step: what they held has then been taken over.
CREATE TABLE IF NOT EXISTS image_terms (term VARBINARY(256) NOT NULL, image_id BIGINT UNSIGNED NOT NULL);
CREATE TABLE IF NOT EXISTS image_tags (tag_key VARBINARY(768) NOT NULL, image_id BIGINT UNSIGNED NOT NULL);

-- All images begin in the tail.
SET SESSION group_concat_max_len = 4294967295;
INSERT IGNORE INTO image_tail (image_id, terms)
SELECT images.id, CONCAT(
  '\n',
  COALESCE((SELECT GROUP_CONCAT('w', term, '\n' SEPARATOR '') FROM image_terms WHERE image_id = images.id), ''),
  COALESCE((SELECT GROUP_CONCAT('t', tag_key, '\n' SEPARATOR '') FROM image_tags WHERE image_id = images.id), '')
)
FROM images;

DROP TABLE IF EXISTS image_terms, image_tags;
