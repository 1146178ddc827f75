import CShims

/// Exchange of tensors with other libraries by DLPack (github.com/dmlc/dlpack), without a copy.
///
/// A pointer is to a `DLManagedTensorVersioned` of ABI major version 1, or without a version to a `DLManagedTensor`, as
/// DLPack 0.x has it.
extension Tensor {
    /// A tensor on the memory of a `DLManagedTensorVersioned`, whose deleter is called once nothing looks at it any more.
    ///
    /// It is read-only if the struct says so. Errors, after which the struct is still the caller's: `unsupported` for
    /// another major version or device; `dtype`; `invalidArgument` or `overflow` for what is no tensor that this library
    /// can read.
    public convenience init(dlpack pointer: UnsafeMutableRawPointer) throws(GAError) {
        let managed = pointer.assumingMemoryBound(to: shims_dlpack_versioned.self)
        guard managed.pointee.major == UInt32(SHIMS_DLPACK_MAJOR) else {
            throw GAError(
                .unsupported,
                "from_dlpack: the struct is of DLPack \(managed.pointee.major).\(managed.pointee.minor), and this library "
                    + "reads \(SHIMS_DLPACK_MAJOR).x: ask the producer for that")
        }
        let content = try Tensor.read(managed.pointee.tensor, of: pointer)
        try self.init(wrapping: content.address, content.dtype, shape: content.shape, strides: content.strides) {
            managed.pointee.deleter?(managed)
        }
        if managed.pointee.flags & UInt64(SHIMS_DLPACK_READ_ONLY) != 0 { try setReadOnly() }
    }

    /// The same from a `DLManagedTensor`, which cannot say whether it is read-only.
    public convenience init(unversionedDLPack pointer: UnsafeMutableRawPointer) throws(GAError) {
        let managed = pointer.assumingMemoryBound(to: shims_dlpack_unversioned.self)
        let content = try Tensor.read(managed.pointee.tensor, of: pointer)
        try self.init(wrapping: content.address, content.dtype, shape: content.shape, strides: content.strides) {
            managed.pointee.deleter?(managed)
        }
    }

    /// A `DLManagedTensorVersioned` on the same elements, or on a contiguous copy of them, for the caller to hand to a
    /// consumer or to the struct's own deleter. No gradient flows through it.
    public func dlpack(copy: Bool = false) throws(GAError) -> UnsafeMutableRawPointer {
        let source = copy ? try packedCopy() : self
        let exported = ExportedTensor(source)
        let flags = (copy ? SHIMS_DLPACK_IS_COPIED : 0) | (source.isReadOnly ? SHIMS_DLPACK_READ_ONLY : 0)
        let managed = UnsafeMutablePointer<shims_dlpack_versioned>.allocate(capacity: 1)
        managed.initialize(
            to: shims_dlpack_versioned(
                major: UInt32(SHIMS_DLPACK_MAJOR), minor: UInt32(SHIMS_DLPACK_MINOR), context: exported.retained(),
                deleter: { managed in
                    guard let managed else { return }
                    ExportedTensor.release(managed.pointee.context)
                    managed.deallocate()
                }, flags: UInt64(flags), tensor: exported.content(of: source)))
        return UnsafeMutableRawPointer(managed)
    }

    /// The same as a `DLManagedTensor`. Errors: `unsupported` where the tensor is read-only and not copied, since that
    /// struct cannot say so.
    public func unversionedDLPack(copy: Bool = false) throws(GAError) -> UnsafeMutableRawPointer {
        guard copy || !isReadOnly else {
            throw GAError(
                .unsupported,
                "to_dlpack: \(label) is read-only, which a struct without a version cannot say: ask for version "
                    + "\(SHIMS_DLPACK_MAJOR), or for a copy")
        }
        let source = copy ? try packedCopy() : self
        let exported = ExportedTensor(source)
        let managed = UnsafeMutablePointer<shims_dlpack_unversioned>.allocate(capacity: 1)
        managed.initialize(
            to: shims_dlpack_unversioned(
                tensor: exported.content(of: source), context: exported.retained(),
                deleter: { managed in
                    guard let managed else { return }
                    ExportedTensor.release(managed.pointee.context)
                    managed.deallocate()
                }))
        return UnsafeMutableRawPointer(managed)
    }

    private struct Content {
        let address: UnsafeMutableRawPointer
        let dtype: DType
        let shape: [Int]
        let strides: [Int]
    }

    /// What a struct says, as far as it is a tensor of the CPU.
    private static func read(
        _ tensor: shims_dlpack_tensor, of managed: UnsafeMutableRawPointer
    ) throws(GAError) -> Content {
        guard tensor.device_type == SHIMS_DLPACK_CPU else {
            throw GAError(
                .unsupported,
                "from_dlpack: the tensor is on device type \(tensor.device_type) of DLPack, and this version has the CPU "
                    + "only, \(SHIMS_DLPACK_CPU): move it there first")
        }
        guard let dtype = DType(dlpack: tensor) else {
            throw GAError(
                .dtype,
                "from_dlpack: the element type has code \(tensor.type_code), \(tensor.type_bits) bits and "
                    + "\(tensor.type_lanes) lanes: convert to float32, bfloat16, float16, int32 or int64")
        }
        guard (0...Int32(Shape.maxRank)).contains(tensor.rank) else {
            throw GAError(
                .invalidArgument, "from_dlpack: ndim is \(tensor.rank): it must be in 0 ... \(Shape.maxRank)")
        }
        let rank = Int(tensor.rank)
        guard tensor.shape != nil || rank == 0 else {
            throw GAError(.invalidArgument, "from_dlpack: shape is NULL, but ndim is \(rank)")
        }
        let shape = UnsafeBufferPointer(start: tensor.shape, count: rank).map { Int($0) }
        let count = try Shape.elementCount(shape, "from_dlpack")
        var strides = Shape.contiguousStrides(shape)
        if let given = tensor.strides {
            // Of an axis of one element, the step means nothing, and producers write what they like.
            for axis in 0..<rank where count > 0 && shape[axis] > 1 { strides[axis] = Int(given[axis]) }
        }
        // Without elements nothing is read, and the pointer may be NULL.
        guard count > 0 else { return Content(address: managed, dtype: dtype, shape: shape, strides: strides) }
        guard let data = tensor.data else {
            throw GAError(.invalidArgument, "from_dlpack: data is NULL, but the shape is \(shape)")
        }
        let (first, overflow) = UInt(bitPattern: data).addingReportingOverflow(UInt(tensor.offset_bytes))
        guard !overflow, let address = UnsafeMutableRawPointer(bitPattern: first) else {
            throw GAError(
                .overflow, "from_dlpack: byte_offset is \(tensor.offset_bytes), which leaves the address space")
        }
        return Content(address: address, dtype: dtype, shape: shape, strides: strides)
    }
}

/// What a struct of DLPack that was made here keeps alive.
private final class ExportedTensor {
    private let storage: Storage
    private let rank: Int
    /// The sizes, and then the strides.
    private let sizes: UnsafeMutablePointer<Int64>

    init(_ tensor: Tensor) {
        tensor.storage.expose()
        storage = tensor.storage
        rank = tensor.rank
        sizes = .allocate(capacity: 2 * max(rank, 1))
        for axis in 0..<rank {
            sizes[axis] = Int64(tensor.shape[axis])
            sizes[rank + axis] = Int64(tensor.strides[axis])
        }
    }

    deinit { sizes.deallocate() }

    func content(of tensor: Tensor) -> shims_dlpack_tensor {
        let type = tensor.dtype.dlpackType
        return shims_dlpack_tensor(
            data: tensor.address, device_type: Int32(SHIMS_DLPACK_CPU), device_id: 0, rank: Int32(rank),
            type_code: type.code, type_bits: type.bits, type_lanes: 1, shape: sizes, strides: sizes + rank,
            offset_bytes: 0)
    }

    func retained() -> UnsafeMutableRawPointer { Unmanaged.passRetained(self).toOpaque() }

    static func release(_ context: UnsafeMutableRawPointer?) {
        guard let context else { return }
        Unmanaged<ExportedTensor>.fromOpaque(context).release()
    }
}

extension DType {
    fileprivate var dlpackType: (code: UInt8, bits: UInt8) {
        let code =
            switch self {
            case .float32, .float16: SHIMS_DLPACK_FLOAT
            case .bfloat16: SHIMS_DLPACK_BFLOAT
            case .int32, .int64: SHIMS_DLPACK_INT
            }
        return (UInt8(code), UInt8(8 * byteCount))
    }

    /// nil for a type that this library does not have.
    fileprivate init?(dlpack tensor: shims_dlpack_tensor) {
        guard tensor.type_lanes == 1,
            let type = DType.allCases.first(where: { $0.dlpackType == (tensor.type_code, tensor.type_bits) })
        else { return nil }
        self = type
    }
}
