import Foundation
import GradAccum
import XCTest

/// The Python package, in an interpreter of this process, and C calls drive one accumulator of the shared library.
///
/// It needs the library that `make library` builds, the shared libpython of the Debian package libpython3-dev, and a numpy
/// for it, which `make build/venv/ready` installs if Python is of the same version. Without one of them it is skipped.
final class EmbeddedPythonTests: XCTestCase {
    private typealias Handle = OpaquePointer
    private typealias Make = @convention(c) (UnsafeMutablePointer<Handle?>, Handle?, Handle?, Handle?) -> Int32
    private typealias MakeLoss = @convention(c) (UnsafeMutablePointer<Handle?>, Handle?, Handle?, Int32) -> Int32
    private typealias FromData =
        @convention(c) (
            UnsafeMutablePointer<Handle?>, Int32, Int32, Int32, UnsafePointer<Int64>, UnsafeRawPointer
        ) -> Int32
    private typealias CreateOptimizer =
        @convention(c) (
            UnsafeMutablePointer<Handle?>, UnsafePointer<Handle?>, Int64, UnsafeRawPointer?
        ) -> Int32
    private typealias CreateAccumulator =
        @convention(c) (
            UnsafeMutablePointer<Handle?>, Handle?, UnsafeRawPointer?
        ) -> Int32
    private typealias Accumulate = @convention(c) (Handle?, Handle?, Double) -> Int32
    private typealias CopyOut = @convention(c) (Handle?, UnsafeMutableRawPointer, Int) -> Int32
    private typealias Free = @convention(c) (Handle?) -> Void

    private static let root = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path

    private let weights: [Float] = (0..<12).map { Float($0 % 5) - 1.5 }
    private let inputs: [Float] = (0..<20).map { Float($0 % 7) * 0.25 - 0.5 }
    private let targets: [Float] = (0..<15).map { Float($0 % 4) * 0.5 }
    private let cut = 2  // of 5 samples go in here, and the others in Python

    func testOneWindowFromCAndFromPythonHasTheBitsOfSwift() throws {
        let python = try interpreter()
        let library = try open("\(Self.root)/build/lib/libgradaccum.so.1", "make library builds it")
        func function<Function>(_ name: String, _ type: Function.Type) throws -> Function {
            unsafeBitCast(try XCTUnwrap(dlsym(library, name), name), to: type)
        }
        func made(_ body: (UnsafeMutablePointer<Handle?>) -> Int32) throws -> Handle {
            var out: Handle?
            XCTAssertEqual(body(&out), 0)
            return try XCTUnwrap(out)
        }
        let fromData = try function("ga_tensor_from_data", FromData.self)
        let free = try function("ga_tensor_free", Free.self)
        func tensor(_ values: ArraySlice<Float>, _ shape: [Int64]) throws -> Handle {
            try made { fromData($0, 0, 1, Int32(shape.count), shape, Array(values)) }
        }
        let weight = try tensor(weights[...], [3, 4])
        let x = try tensor(inputs[..<(cut * 4)], [Int64(cut), 4])
        let y = try tensor(targets[..<(cut * 3)], [Int64(cut), 3])
        let create = try function("ga_adamw_create", CreateOptimizer.self)
        let optimizer = try made { create($0, [weight], 1, nil) }
        let createAccumulator = try function("ga_accumulator_create", CreateAccumulator.self)
        let accumulator = try made { createAccumulator($0, optimizer, nil) }
        let linear = try function("ga_linear", Make.self)
        let mse = try function("ga_mse", MakeLoss.self)
        let prediction = try made { linear($0, x, weight, nil) }
        let loss = try made { mse($0, prediction, y, 0) }
        XCTAssertEqual(try function("ga_accumulate", Accumulate.self)(accumulator, loss, Double(cut)), 0)

        let script = """
            import gradaccum as ga

            assert ga.version() and ga._ffi.lib._name == "libgradaccum.so.1"
            weight = ga.Tensor.borrow(\(UInt(bitPattern: weight)))
            optimizer = ga.Optimizer.borrow(\(UInt(bitPattern: optimizer)), [weight])
            accumulator = ga.Accumulator.borrow(\(UInt(bitPattern: accumulator)), optimizer)
            x = ga.reshape(ga.tensor(\(Array(inputs[(cut * 4)...]))), (-1, 4))
            y = ga.reshape(ga.tensor(\(Array(targets[(cut * 3)...]))), (-1, 3))
            accumulator.accumulate(ga.mse(ga.linear(x, weight), y), weight=\(5 - cut))
            report = accumulator.step()
            assert report.outcome == ga.Outcome.APPLIED and report.weight == 5, report
            del weight, optimizer, accumulator, x, y
            """
        XCTAssertEqual(python.run(script), 0, "the script failed: its traceback is on the standard error")

        var found = [Float](repeating: 0, count: weights.count)
        let copyOut = try function("ga_tensor_copy_out", CopyOut.self)
        XCTAssertEqual(found.withUnsafeMutableBytes { copyOut(weight, $0.baseAddress!, $0.count) }, 0)
        XCTAssertEqual(found, try trainedInSwift())
        XCTAssertNotEqual(found, weights)
        try function("ga_accumulator_free", Free.self)(accumulator)
        try function("ga_optimizer_free", Free.self)(optimizer)
        for tensor in [weight, x, y, prediction, loss] { free(tensor) }
    }

    /// The same window in the library that this test is linked with, as one micro-batch.
    private func trainedInSwift() throws -> [Float] {
        let weight = try Tensor(weights, shape: [3, 4])
        let accumulator = try Accumulator(Optimizer([weight], AdamW()))
        let x = try Tensor(inputs, shape: [5, 4])
        let y = try Tensor(targets, shape: [5, 3])
        try accumulator.accumulate(try x.linear(weight).mse(y), weight: 5)
        _ = try accumulator.step()
        return try weight.values()
    }

    private struct Interpreter {
        let run: (String) -> Int32
    }

    private func open(_ path: String, _ advice: String) throws -> UnsafeMutableRawPointer {
        guard let library = dlopen(path, RTLD_NOW) else { throw XCTSkip("\(path) is missing: \(advice)") }
        return library
    }

    /// The newest Python whose shared library is installed, with the package and numpy on its path.
    private func interpreter() throws -> Interpreter {
        for minor in (9...15).reversed() {
            // Global, as extension modules such as numpy's look for their symbols in the process.
            guard let library = dlopen("libpython3.\(minor).so.1.0", RTLD_NOW | RTLD_GLOBAL) else { continue }
            let site = "\(Self.root)/build/venv/lib/python3.\(minor)/site-packages"
            setenv("PYTHONPATH", "\(Self.root)/bindings/python:\(site)", 1)
            unsetenv("GRADACCUM_LIBRARY")
            func function<Function>(_ name: String, _ type: Function.Type) throws -> Function {
                unsafeBitCast(try XCTUnwrap(dlsym(library, name), name), to: type)
            }
            // Without signal handlers: they are the test's. It ends with the process, as the objects of numpy do.
            try function("Py_InitializeEx", (@convention(c) (Int32) -> Void).self)(0)
            let importModule = try function(
                "PyImport_ImportModule", (@convention(c) (UnsafePointer<CChar>) -> OpaquePointer?).self)
            guard importModule("numpy") != nil else {
                try function("PyErr_Clear", (@convention(c) () -> Void).self)()
                throw XCTSkip("there is no numpy for Python 3.\(minor): make build/venv/ready")
            }
            let run = try function("PyRun_SimpleString", (@convention(c) (UnsafePointer<CChar>) -> Int32).self)
            return Interpreter { script in script.withCString { run($0) } }
        }
        throw XCTSkip("there is no shared libpython: apt-get install libpython3-dev")
    }
}
