"""Never imported, since its entry point's name can't be a method's."""

raise AssertionError("a plugin with a bad name was imported")
