pytest_plugins = ["tests.support.database_fixtures"]
