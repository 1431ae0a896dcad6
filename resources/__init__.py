"""Floor 6: configuration → plain object. Each class is a ConfigurableResource whose fields are configuration.

Resources import the Dagster-free machine only; they know neither assets nor sensors. An asset asks for the
plain object, so a test passes a twin by keyword.
"""
