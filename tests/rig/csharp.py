"""`csharp.py DOTNET_ROOT ROSLYN OUT NAME SOURCE…`: OUT/NAME.dll from C# sources, by a compiler that runs inside this process.

Started by `toolchains` with pythonnet on its path: there is a .NET runtime to be had as a package, and no SDK.
"""

import json
import sys
from pathlib import Path

ROOT, ROSLYN, OUT = (Path(argument) for argument in sys.argv[1:4])
NAME, SOURCES = sys.argv[4], sys.argv[5:]
FRAMEWORK = ("System.", "Microsoft.Win32.", "Microsoft.CSharp", "mscorlib", "netstandard")


def runtime_config(*, invariant: bool) -> str:
    options: dict[str, object] = {
        "tfm": "net8.0",
        "framework": {"name": "Microsoft.NETCore.App", "version": "8.0.0"},
    }
    if invariant:
        options["configProperties"] = {"System.Globalization.Invariant": True}
    return json.dumps({"runtimeOptions": options})


def main() -> None:
    from pythonnet import load  # type: ignore[import-not-found]

    ours = OUT / "compiler.json"
    ours.write_text(runtime_config(invariant=True))
    load("coreclr", runtime_config=str(ours), dotnet_root=str(ROOT))
    ours.unlink()
    import clr  # type: ignore[import-not-found]

    sys.path.append(str(ROSLYN))
    clr.AddReference("Microsoft.CodeAnalysis")
    clr.AddReference("Microsoft.CodeAnalysis.CSharp")
    from Microsoft.CodeAnalysis import MetadataReference, OutputKind, SyntaxTree  # type: ignore[import-not-found]
    from Microsoft.CodeAnalysis.CSharp import (  # type: ignore[import-not-found]
        CSharpCompilation,
        CSharpCompilationOptions,
        CSharpSyntaxTree,
    )
    from System.Collections.Generic import List  # type: ignore[import-not-found]
    from System.IO import File  # type: ignore[import-not-found]

    trees, references = List[SyntaxTree](), List[MetadataReference]()
    for source in SOURCES:
        trees.Add(CSharpSyntaxTree.ParseText(File.ReadAllText(source)))
    (framework,) = (ROOT / "shared" / "Microsoft.NETCore.App").iterdir()
    for library in sorted(framework.glob("*.dll")):
        if library.name.startswith(FRAMEWORK) and ".Native" not in library.name:
            references.Add(MetadataReference.CreateFromFile(str(library)))
    options = CSharpCompilationOptions(OutputKind.ConsoleApplication)
    target = File.Create(str(OUT / f"{NAME}.dll"))
    emitted = CSharpCompilation.Create(NAME, trees, references, options).Emit(target)
    target.Close()
    if not emitted.Success:
        sys.exit("\n".join(str(each) for each in emitted.Diagnostics if str(each.Severity) == "Error"))
    (OUT / f"{NAME}.runtimeconfig.json").write_text(runtime_config(invariant=False))


main()
