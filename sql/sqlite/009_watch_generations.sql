-- Makes generations a resource that is listed, watched and cancelled. Run by PixyProxy when it opens the database.

PRAGMA encoding = 'UTF-8';

-- A generation that is detached goes on while it is queued, whoever has stopped waiting for it. partials counts the
-- partial images that have come so far.
ALTER TABLE generations ADD COLUMN is_detached INTEGER NOT NULL DEFAULT 0;
ALTER TABLE generations ADD COLUMN partials INTEGER NOT NULL DEFAULT 0;
CREATE INDEX generations_I4 ON generations (state, created_at, id);
CREATE INDEX generations_I5 ON generations (author_id, state, created_at, id);

-- Partial images are deleted shortly after their generation has ended.
CREATE TABLE partial_images (
  generation_id INTEGER NOT NULL,
  image_index INTEGER NOT NULL,
  content_type TEXT NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (generation_id, image_index),
  CONSTRAINT partial_images_F1 FOREIGN KEY (generation_id) REFERENCES generations (id)
);
