import CGradAccum
import GradAccum

/// The pointer that goes with a callback of the caller, and what the caller wants released with it.
final class ForeignUser {
    let pointer: UnsafeMutableRawPointer?
    private let release: (@convention(c) (UnsafeMutableRawPointer?) -> Void)?
    /// Whether the pointer is the library's to release: not before the caller has been told of success.
    var isOwned = false

    init(_ pointer: UnsafeMutableRawPointer?, _ release: (@convention(c) (UnsafeMutableRawPointer?) -> Void)?) {
        self.pointer = pointer
        self.release = release
    }

    deinit { if isOwned { release?(pointer) } }
}

/// The kind of error that a callback returned, nil for success. Errors: `invalidArgument` for what is no status.
func errorKind(_ status: ga_status, of callback: StaticString) throws(GAError) -> GAError.Kind? {
    guard status != GA_OK else { return nil }
    guard let kind = GAError.Kind(rawValue: status) else {
        throw GAError(.invalidArgument, "\(callback) returned \(status), which is no ga_status")
    }
    return kind
}
