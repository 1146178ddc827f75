import CShims

/// What linear layers and attention compute in on this thread.
///
/// With bfloat16 or float16 they round what they multiply to it, add up in float32, and give results in it; normalisations,
/// softmax, losses and the gradients of parameters stay float32, and so do the parameters themselves. The range of float16
/// ends at 65504, and below 6e-5 it loses digits: gradients need a ``LossScaler``.
public enum Compute {
    private static let slot = Int32(SHIMS_SLOT_COMPUTE_DTYPE)

    /// A floating type.
    public static var dtype: DType {
        DType(rawValue: Int32(Int(bitPattern: shims_thread_slot(slot)))) ?? .float32
    }

    /// Errors: `unsupported` for a type that nothing can compute in.
    public static func setDType(_ dtype: DType) throws(GAError) {
        guard dtype.isFloatingPoint else {
            throw GAError(.unsupported, "compute_dtype is \(dtype): computing is in float32, bfloat16 or float16")
        }
        let value = dtype == .float32 ? 0 : Int(dtype.rawValue)
        shims_set_thread_slot(slot, UnsafeMutableRawPointer(bitPattern: value))
    }

    /// Runs `body` with operations of this thread computing in `dtype`.
    public static func with<Result>(
        _ dtype: DType, _ body: () throws(GAError) -> Result
    ) throws(GAError) -> Result {
        let before = Compute.dtype
        try setDType(dtype)
        defer { try? setDType(before) }
        return try body()
    }
}
