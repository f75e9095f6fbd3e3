import click


@click.command("doctor")
def doctor():
    pass
