"""`muonlab optim …`: the optimizer's own pages."""

from tyro.extras import SubcommandApp

application = SubcommandApp()
