/// The type of a tensor's elements. A bfloat16 or float16 is held as its 16 bits.
public enum DType: Int32, CaseIterable, Sendable {
    case float32 = 1
    case bfloat16 = 2
    case float16 = 3
    case int32 = 4
    case int64 = 5

    public var byteCount: Int {
        switch self {
        case .float32, .int32: 4
        case .bfloat16, .float16: 2
        case .int64: 8
        }
    }

    public var isFloatingPoint: Bool {
        switch self {
        case .float32, .bfloat16, .float16: true
        case .int32, .int64: false
        }
    }

    public var name: String { "\(self)" }
}
