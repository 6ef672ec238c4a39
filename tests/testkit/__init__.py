"""What the tests share: models, files, independent arithmetic, and access to the test data."""
