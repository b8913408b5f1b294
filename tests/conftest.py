pytest_plugins = [
    # First, because the others import it: pytest wants to load its plugins itself.
    "tests.support.leaving_out",
    "tests.support.database_fixtures",
    "tests.support.object_store_fixtures",
]
