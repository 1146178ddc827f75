import CGradAccum
import CShims
import GradAccum

/// Runs the body of an export: an error becomes a status and this thread's sentence.
///
/// All of it computes in the library's floating-point mode, so that neither the caller's rounding mode nor its unmasked
/// exceptions have a part in a result.
func guarded(_ body: () throws(GAError) -> Void) -> ga_status {
    let mode = shims_enter_compute()
    defer { shims_leave_compute(mode) }
    do throws(GAError) {
        _ = try Runtime.instructionSet()
        try body()
        return GA_OK
    } catch {
        error.message.withCString { shims_set_error($0) }
        return error.kind.rawValue
    }
}

/// Forgets a handle, if it is one; its object goes in the library's floating-point mode, as do the caller's callbacks.
///
/// A sentence of `loss`, about what goes with the object, becomes this thread's.
func freeHandle(_ handle: OpaquePointer?, _ kind: HandleKind, loss: (AnyObject) -> String? = { _ in nil }) {
    guard let handle else { return }
    let mode = shims_enter_compute()
    defer { shims_leave_compute(mode) }
    if let object = HandleTable.shared.remove(handle, kind), let loss = loss(object) {
        loss.withCString { shims_set_error($0) }
    }
}

/// Runs a body that makes a tensor, and hands a handle for it to the caller and to the open scope.
func making(
    _ out: UnsafeMutablePointer<OpaquePointer?>?, _ body: () throws(GAError) -> Tensor
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        out.pointee = try handle(of: try body())
    }
}

/// As ``making(_:_:)`` for a tensor on memory of the caller, whose it stays unless this succeeds.
func takingOver(
    _ out: UnsafeMutablePointer<OpaquePointer?>?, _ body: () throws(GAError) -> Tensor
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        let tensor = try body()
        do throws(GAError) {
            out.pointee = try handle(of: tensor)
        } catch {
            tensor.giveBack()
            throw error
        }
    }
}

func handle(of tensor: Tensor) throws(GAError) -> OpaquePointer {
    try HandleTable.shared.insert(tensor, .tensor, in: Scope.current?.handle)
}

/// A constant of the header as a Swift enumeration. Errors: `invalidArgument`.
func constant<Constant: RawRepresentable<Int32>>(_ value: Int32, _ argument: StaticString) throws(GAError) -> Constant {
    guard let constant = Constant(rawValue: value) else {
        throw GAError(.invalidArgument, "\(argument) is \(value), which is none of the header's constants for it")
    }
    return constant
}

/// A flag: 0 or 1. Errors: `invalidArgument`.
func flag(_ value: Int32, _ argument: StaticString) throws(GAError) -> Bool {
    guard value == 0 || value == 1 else {
        throw GAError(.invalidArgument, "\(argument) is \(value): it must be 0 or 1")
    }
    return value == 1
}

/// Reads an options struct of a program that may be older or newer than the library, over the defaults.
///
/// A struct of an older version, of at least `firstVersion` bytes, keeps the defaults of what it lacks; a larger one is
/// refused unless its tail is zero.
func options<Options>(
    _ given: UnsafePointer<Options>?, or defaults: Options, firstVersion: Int = MemoryLayout<Options>.size
) throws(GAError) -> Options {
    guard let given else { return defaults }
    let size = try structSize(UnsafeRawPointer(given), of: Options.self, firstVersion: firstVersion, "options")
    var result = defaults
    withUnsafeMutableBytes(of: &result) { bytes in
        bytes.baseAddress!.copyMemory(from: given, byteCount: min(size, bytes.count))
    }
    return result
}

/// Writes a struct of results to a caller whose struct may be smaller or larger; its struct_size stays.
func store<Results>(
    _ results: Results, to out: UnsafeMutablePointer<Results>, firstVersion: Int = MemoryLayout<Results>.size
) throws(GAError) {
    let size = try structSize(
        UnsafeRawPointer(out), of: Results.self, firstVersion: firstVersion, "out", zeroTail: false)
    withUnsafeBytes(of: results) { bytes in
        let sizeField = MemoryLayout<UInt32>.size
        (UnsafeMutableRawPointer(out) + sizeField).copyMemory(
            from: bytes.baseAddress! + sizeField, byteCount: min(size, bytes.count) - sizeField)
    }
}

/// The struct_size that a struct starts with, at least that of the struct's first version.
///
/// Errors: `invalidArgument` if it cannot be right.
func structSize<Struct>(
    _ given: UnsafeRawPointer, of type: Struct.Type, firstVersion: Int = MemoryLayout<Struct>.size,
    _ argument: StaticString, zeroTail: Bool = true
) throws(GAError) -> Int {
    let size = Int(given.loadUnaligned(as: UInt32.self))
    let known = MemoryLayout<Struct>.size
    // No version ends within a field, and fields have 8 bytes since the first.
    guard size >= firstVersion && size <= 4096 && (size >= known || size % 8 == 0) else {
        throw GAError(
            .invalidArgument,
            "\(argument): struct_size is \(size), and this library's struct has \(known) bytes: use its _INIT macro")
    }
    guard zeroTail, size > known else { return size }
    for offset in known..<size where given.load(fromByteOffset: offset, as: UInt8.self) != 0 {
        throw GAError(
            .unsupported,
            "\(argument): struct_size is \(size), and a field beyond this library's \(known) bytes is set: it needs a "
                + "newer library")
    }
    return size
}
