// swift-tools-version: 6.3
import PackageDescription

let strict: [SwiftSetting] = [.treatAllWarnings(as: .error), .enableUpcomingFeature("MemberImportVisibility")]

/// One kernel source is built once per instruction set; `-fno-math-errno` lets square roots vectorise.
func kernels(_ clangFlags: [String], defines: [String] = []) -> [SwiftSetting] {
    let flags = (["-fno-math-errno"] + clangFlags).flatMap { ["-Xcc", $0] }
    return strict + [.unsafeFlags(flags)] + defines.map { .define($0) }
}

let avx512 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
let kernelModules: [Target.Dependency] = ["Kernels", "KernelsAVX2", "KernelsAVX512", "KernelsAVX512BF16"]

let package = Package(
    name: "gradaccum",
    products: [
        .library(name: "gradaccum", type: .dynamic, targets: ["GradAccumShared"]),
        .library(name: "GradAccum", targets: ["GradAccum"]),
    ],
    targets: [
        .systemLibrary(name: "CGradAccum", path: "include"),
        .target(
            name: "CShims",
            cSettings: [.unsafeFlags(["-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"])]),
        .target(name: "Kernels", dependencies: ["CShims"], swiftSettings: kernels([])),
        .target(
            name: "KernelsAVX2", dependencies: ["CShims"],
            swiftSettings: kernels(["-march=x86-64-v3"], defines: ["FMA"])),
        .target(
            name: "KernelsAVX512", dependencies: ["CShims"],
            swiftSettings: kernels(avx512, defines: ["FMA"])),
        .target(
            name: "KernelsAVX512BF16", dependencies: ["CShims"],
            swiftSettings: kernels(avx512 + ["-mavx512bf16"], defines: ["FMA", "BF16_DOT_PRODUCT"])),
        .target(
            name: "GradAccum", dependencies: ["CShims"] + kernelModules,
            swiftSettings: strict, linkerSettings: [.linkedLibrary("m")]),
        .target(
            name: "GradAccumC", dependencies: ["GradAccum", "CGradAccum", "CShims"], swiftSettings: strict),
        .target(
            name: "GradAccumShared", dependencies: ["GradAccumC"], swiftSettings: strict,
            linkerSettings: [
                .unsafeFlags([
                    "-static-stdlib", "-use-ld=lld",
                    "-Xlinker", "--version-script=\(Context.packageDirectory)/gradaccum.map",
                    "-Xlinker", "-soname=libgradaccum.so.1",
                    "-Xlinker", "-z", "-Xlinker", "nodelete",
                    "-Xlinker", "--gc-sections",
                ])
            ]),
        .testTarget(
            name: "KernelsTests", dependencies: ["CShims"] + kernelModules, swiftSettings: strict),
        .testTarget(name: "GradAccumTests", dependencies: ["GradAccum", "CShims"], swiftSettings: strict),
    ]
)
