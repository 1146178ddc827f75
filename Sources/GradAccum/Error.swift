/// Why a call failed: a kind for the program and one sentence for its author.
public struct GAError: Error, Equatable, CustomStringConvertible {
    public enum Kind: Int32, CaseIterable, Sendable {
        case invalidArgument = -1
        case shape = -2
        case dtype = -3
        case state = -4
        case outOfMemory = -5
        case overflow = -6
        case index = -7
        case nonFinite = -8
        case unsupported = -9
        case `internal` = -10
        case outlier = -11
    }

    public let kind: Kind
    /// What was wrong, with which values, and what to do.
    public let message: String

    public init(_ kind: Kind, _ message: String) {
        self.kind = kind
        self.message = message
    }

    public var description: String { message }
}
