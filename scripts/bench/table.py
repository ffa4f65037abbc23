FILE=None
