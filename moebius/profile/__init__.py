"""Where the time of a training step goes, and what that costs against what it should."""
