"""The Python API, which the command line calls. `import rayfuse` has these names; each module loads when it is used."""
