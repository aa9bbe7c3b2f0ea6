"""`python -m wds_pipeline.cli`, where the script is not on the path."""

from wds_pipeline.cli.main import main

if __name__ == "__main__":
    main(prog_name="wds-pipeline")
