"""What recording copies must do on every database."""

from __future__ import annotations

from pixyproxy.core.fields import new_guid
from pixyproxy.data.database import Database
from pixyproxy.data.repositories.image_copies import ImageCopyRepository, ImageToCopy
from pixyproxy.data.repositories.images import ImageRepository
from tests.contract.records import add_caller, add_image

STORE = new_guid()


def to_copy(database: Database, limit: int, after: int = 0, store: str = STORE) -> list[ImageToCopy]:
    with database.reading() as context:
        return ImageCopyRepository(context, store).get_images(limit, after=after)


def copies(database: Database, limit: int, after: str = "") -> dict[str, bool]:
    with database.reading() as context:
        return ImageCopyRepository(context, STORE).get_copies(limit, after=after)


def record(database: Database, *guids: str, store: str = STORE) -> None:
    with database.transaction() as context:
        ImageCopyRepository(context, store).replace(guids)
        context.commit()


def test_images_come_in_the_order_of_their_ids_and_say_whether_they_are_copied(database: Database) -> None:
    ann = add_caller(database)
    images = [add_image(database, ann) for _ in range(3)]
    for _ in range(2):
        record(database, images[1].guid)
    record(database, images[2].guid, store=new_guid())

    expected = [ImageToCopy(i.id, i.guid, i.sha256, i is images[1]) for i in images]
    assert to_copy(database, 10) == expected
    assert to_copy(database, 2) == expected[:2]
    assert to_copy(database, 2, after=images[1].id) == expected[2:]
    assert to_copy(database, 2, after=images[2].id) == []
    with database.reading() as context:
        assert ImageCopyRepository(context, STORE).count_images() == 3


def test_copies_outlive_their_images_until_they_are_deleted(database: Database) -> None:
    ann = add_caller(database)
    images = sorted((add_image(database, ann) for _ in range(3)), key=lambda image: image.guid)
    guids = [image.guid for image in images]
    record(database, *guids)
    with database.transaction() as context:
        ImageRepository(context).delete(images[1].id)
        context.commit()

    assert copies(database, 10) == {guids[0]: True, guids[1]: False, guids[2]: True}
    assert copies(database, 1, after=guids[0]) == {guids[1]: False}

    with database.transaction() as context:
        ImageCopyRepository(context, STORE).delete([guids[1], new_guid()])
        ImageCopyRepository(context, STORE).delete([])
        context.commit()
    assert copies(database, 10, after=guids[0]) == {guids[2]: True}
