"""`muonlab bench …`: measurements on this machine."""

from tyro.extras import SubcommandApp

application = SubcommandApp()
