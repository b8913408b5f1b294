pytest_plugins = ["tests.support.database_fixtures", "tests.support.object_store_fixtures"]
