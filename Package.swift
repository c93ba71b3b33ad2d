// swift-tools-version: 6.3
import PackageDescription

/// Settings that every Swift target of the package shares.
let swiftSettings: [SwiftSetting] = [
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("InternalImportsByDefault"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

let nioCore: Target.Dependency = .product(name: "NIOCore", package: "swift-nio")
let nioPosix: Target.Dependency = .product(name: "NIOPosix", package: "swift-nio")
let nioEmbedded: Target.Dependency = .product(name: "NIOEmbedded", package: "swift-nio")
let nioHTTP1: Target.Dependency = .product(name: "NIOHTTP1", package: "swift-nio")
let nioTLS: Target.Dependency = .product(name: "NIOTLS", package: "swift-nio")
let nioHPACK: Target.Dependency = .product(name: "NIOHPACK", package: "swift-nio-http2")
let nioSSL: Target.Dependency = .product(name: "NIOSSL", package: "swift-nio-ssl")

/// Set in builds that link libFuzzer, whose driver the fuzzers' mains call.
let isFuzzing = Context.environment["GRPC_ENGINE_FUZZING"] != nil

/// A library with which the tests replay kept cases, and in fuzzing builds an executable.
func fuzzTarget(name: String, dependencies: [Target.Dependency]) -> Target {
  isFuzzing
    ? .executableTarget(
      name: name,
      dependencies: dependencies + ["CLibFuzzer"],
      swiftSettings: swiftSettings + [.define("FUZZING")]
    )
    : .target(name: name, dependencies: dependencies, swiftSettings: swiftSettings)
}

/// The layers, lowest first; a target may import what it names here and nothing else
/// (`--explicit-target-dependency-import-check error` keeps that true).
let package = Package(
  name: "django-grpc-swift",
  products: [
    .library(name: "_engine", type: .dynamic, targets: ["GRPCEngineModule"])
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-nio.git", from: "2.101.0"),
    .package(url: "https://github.com/apple/swift-nio-http2.git", from: "1.46.0"),
    .package(url: "https://github.com/apple/swift-nio-ssl.git", from: "2.37.0"),
  ],
  targets: [
    // Below the layers: HTTP/2 as values, no I/O.
    .target(name: "GRPCEngineHTTP2", dependencies: [nioCore], swiftSettings: swiftSettings),
    // Layer 1: gRPC's wire format. Values and codecs, no I/O.
    .systemLibrary(name: "CGRPCEngineZlib"),
    .target(
      name: "GRPCEngineWire",
      dependencies: ["CGRPCEngineZlib", "GRPCEngineHTTP2", nioCore],
      swiftSettings: swiftSettings
    ),
    // What guards values that threads share, in every layer.
    .target(name: "GRPCEngineLocks", swiftSettings: swiftSettings),
    // Numbers of a server, in memory that its processes share. Beside the layers: each may count.
    .target(
      name: "GRPCEngineStatistics",
      dependencies: ["GRPCEngineLocks"],
      swiftSettings: swiftSettings
    ),
    // Also has NIO's descriptors closed on exec: whatever is linked with NIO needs it.
    .target(name: "CGRPCEngineSockets"),
    // Layer 2: sockets, TLS, HTTP/2 connections and streams. Knows no methods.
    .target(
      name: "GRPCEngineTransport",
      dependencies: [
        "CGRPCEngineSockets", "GRPCEngineHTTP2", "GRPCEngineLocks", "GRPCEngineWire",
        "GRPCEngineStatistics", nioCore, nioPosix, nioTLS, nioSSL,
      ],
      swiftSettings: swiftSettings
    ),
    // Layer 3: methods, calls, admission, deadlines. Knows no language.
    .target(
      name: "GRPCEngineServer",
      dependencies: [
        "GRPCEngineHTTP2", "GRPCEngineLocks", "GRPCEngineWire", "GRPCEngineTransport",
        "GRPCEngineStatistics", nioCore, nioPosix, nioHTTP1,
      ],
      swiftSettings: swiftSettings
    ),
    // Which worker threads run and sleep, as values that know no thread.
    .target(name: "GRPCEngineWorkers", dependencies: [nioCore], swiftSettings: swiftSettings),
    .systemLibrary(name: "CGRPCEngineMalloc"),
    // Layer 4: CPython, and Python servicers as method handlers.
    .target(name: "CPythonABI"),
    .target(
      name: "PythonInterop",
      dependencies: ["CPythonABI"],
      swiftSettings: swiftSettings
    ),
    .target(
      name: "GRPCEnginePython",
      dependencies: [
        "GRPCEngineLocks", "GRPCEngineServer", "GRPCEngineTransport", "GRPCEngineStatistics",
        "GRPCEngineHTTP2", "GRPCEngineWire", "GRPCEngineWorkers", "PythonInterop", "CPythonABI",
        "CGRPCEngineMalloc", nioCore,
      ],
      swiftSettings: swiftSettings
    ),
    // What would keep a wheel from systems with an older glibc.
    .target(name: "CGlibcStandIns"),
    // Layer 5: the extension module, one C entry point.
    .target(
      name: "GRPCEngineModule",
      dependencies: ["CGlibcStandIns", "GRPCEnginePython", "CPythonABI"],
      swiftSettings: swiftSettings
    ),
    // Test support: a client on raw frames and plain Swift method handlers.
    .target(
      name: "GRPCEngineTesting",
      dependencies: [
        "GRPCEngineServer", "GRPCEngineTransport", "GRPCEngineWire", nioCore, nioPosix, nioHPACK,
      ],
      swiftSettings: swiftSettings
    ),
    .systemLibrary(name: "CLibFuzzer"),
    fuzzTarget(name: "WireFuzz", dependencies: ["GRPCEngineHTTP2", "GRPCEngineWire", nioCore]),
    // Also the tests' connection without a socket, `EmbeddedConnection`.
    fuzzTarget(
      name: "TransportFuzz",
      dependencies: [
        "GRPCEngineTesting", "GRPCEngineServer", "GRPCEngineTransport", "GRPCEngineWire", nioCore,
        nioEmbedded, nioHPACK,
      ]
    ),
    .testTarget(
      name: "GRPCEngineWireTests",
      dependencies: [
        "GRPCEngineHTTP2", "GRPCEngineWire", "GRPCEngineTesting", "WireFuzz", nioCore,
      ],
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "GRPCEngineWorkersTests",
      dependencies: ["GRPCEngineWorkers", "GRPCEngineTesting", nioCore],
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "GRPCEngineLocksTests",
      dependencies: ["GRPCEngineLocks"],
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "GRPCEngineStatisticsTests",
      dependencies: ["GRPCEngineStatistics"],
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "GRPCEngineHTTP2Tests",
      dependencies: ["GRPCEngineHTTP2", "GRPCEngineTesting", nioCore, nioHPACK],
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "GRPCEngineTransportTests",
      dependencies: [
        "CGRPCEngineSockets", "GRPCEngineHTTP2", "GRPCEngineStatistics", "GRPCEngineTransport",
        "GRPCEngineWire", "GRPCEngineTesting", "TransportFuzz", nioCore, nioPosix, nioEmbedded,
        nioHPACK,
      ],
      swiftSettings: swiftSettings
    ),
    .testTarget(
      name: "GRPCEngineServerTests",
      dependencies: [
        "CGRPCEngineSockets", "GRPCEngineHTTP2", "GRPCEngineServer", "GRPCEngineTransport",
        "GRPCEngineStatistics", "GRPCEngineWire", "GRPCEngineTesting", "TransportFuzz", nioCore,
        nioPosix, nioHPACK, nioSSL,
      ],
      swiftSettings: swiftSettings
    ),
  ],
  swiftLanguageModes: [.v6]
)
