/// Keys and certificates for tests, good for nothing else.
///
/// Made once with a start in 2020 and an end in 2120: NIOSSL reads certificates but makes none.
/// All but the stranger's are signed by `authority`.
enum TestCertificates {
  /// Signs the others.
  static let authority = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBYDCCAQegAwIBAgIUXK6Fhmfr5LmS5X82Ba1Gn85IwfIwCgYIKoZIzj0EAwIw
    JTEjMCEGA1UEAwwaZ3JwYy1lbmdpbmUgdGVzdCBhdXRob3JpdHkwIBcNMjAwMTAx
    MDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMCUxIzAhBgNVBAMMGmdycGMtZW5naW5l
    IHRlc3QgYXV0aG9yaXR5MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE1lKPUh71
    M7s5q9sxAht1ef1zirS5y99CE4QVebXHAcpgvkTNFpwXMeNq2vGpncyeH5x0jfri
    QQ5uJk3LGnlSiaMTMBEwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNHADBE
    AiBeWx/hXbhFcyvr2/2uM890nG4amTHaUGjlg44KL3UVKgIgVcd6uyNGl6HfNLrJ
    3P+z82P+0A66/ietHuUkuM6IXCU=
    -----END CERTIFICATE-----
    """.utf8
  )

  /// For `localhost` and `server.test`.
  static let serverCertificate = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBcjCCARigAwIBAgIUb89r1SoDP9qMUgbS73e+aYBrDRYwCgYIKoZIzj0EAwIw
    JTEjMCEGA1UEAwwaZ3JwYy1lbmdpbmUgdGVzdCBhdXRob3JpdHkwIBcNMjAwMTAx
    MDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBYxFDASBgNVBAMMC3NlcnZlci50ZXN0
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEcflUPZOkQQ2cKK62xDTJVH0/YmsC
    dtlkNp5zUXyU7ouKdHrjhuEOfFopEMyss/BakMNmDzWiZwrWHBL5S/zJW6MzMDEw
    DAYDVR0TAQH/BAIwADAhBgNVHREEGjAYgglsb2NhbGhvc3SCC3NlcnZlci50ZXN0
    MAoGCCqGSM49BAMCA0gAMEUCIQDAiJICcHA58NRuucaNiESo4ssYlod4em9y+AJN
    iXAoDwIgXDFXSzGWp7RWxfSFt3Y0zkAMTsen6+i31k2M4r0IAaw=
    -----END CERTIFICATE-----
    """.utf8
  )

  /// Of `serverCertificate`.
  static let serverKey = Array(
    """
    -----BEGIN PRIVATE KEY-----
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg0q+5Il/7IRXnEUd2
    hLYSdTKvhA5Z9PONoYjgtiDdG1OhRANCAARx+VQ9k6RBDZworrbENMlUfT9iawJ2
    2WQ2nnNRfJTui4p0euOG4Q58WikQzKyz8FqQw2YPNaJnCtYcEvlL/Mlb
    -----END PRIVATE KEY-----
    """.utf8
  )

  /// For `second.test` and `*.wild.test`.
  static let secondCertificate = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBczCCARqgAwIBAgIUKiCoIf8siD2fziS/2r2tgteCrf0wCgYIKoZIzj0EAwIw
    JTEjMCEGA1UEAwwaZ3JwYy1lbmdpbmUgdGVzdCBhdXRob3JpdHkwIBcNMjAwMTAx
    MDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBYxFDASBgNVBAMMC3NlY29uZC50ZXN0
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEyTEOHDSQMPFP3Eo6v1ith5CLeGpz
    N4O8CGYMIWlAH4MR5oJNMvykUcfWPTcYywWE5kOoUZuRJVxGT/YmToVYTaM1MDMw
    DAYDVR0TAQH/BAIwADAjBgNVHREEHDAaggtzZWNvbmQudGVzdIILKi53aWxkLnRl
    c3QwCgYIKoZIzj0EAwIDRwAwRAIgPRmAjmhvK5ewJXEE3qCrj9kcTnupjT0T7O3a
    L6RTnf4CIHnjSTiiDHgnD8BZAD/3wLNc9YsSDjq7qTUi0LlCjCRh
    -----END CERTIFICATE-----
    """.utf8
  )

  /// Of `secondCertificate`.
  static let secondKey = Array(
    """
    -----BEGIN PRIVATE KEY-----
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgMj/fqhCdslcJGIBW
    HiLa9vleL2qeO2t8lS8b61votr+hRANCAATJMQ4cNJAw8U/cSjq/WK2HkIt4anM3
    g7wIZgwhaUAfgxHmgk0y/KRRx9Y9NxjLBYTmQ6hRm5ElXEZP9iZOhVhN
    -----END PRIVATE KEY-----
    """.utf8
  )

  /// For `client.test` and `127.0.0.1`.
  static let clientCertificate = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBbjCCAROgAwIBAgIUOxsVPw1WzewCabS0rFhmtezMcq4wCgYIKoZIzj0EAwIw
    JTEjMCEGA1UEAwwaZ3JwYy1lbmdpbmUgdGVzdCBhdXRob3JpdHkwIBcNMjAwMTAx
    MDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBYxFDASBgNVBAMMC2NsaWVudC50ZXN0
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE/mjQRjhs5CSlM9XTbnv8obRea5sC
    7XJ3oq2e6uHCzH533iGYNyMStS/aJBqogJ6kjXpLq84kvcIuzABtyoYgZqMuMCww
    DAYDVR0TAQH/BAIwADAcBgNVHREEFTATggtjbGllbnQudGVzdIcEfwAAATAKBggq
    hkjOPQQDAgNJADBGAiEA0rLWjJKZyYaDmeaNxY0jRM0uSLUVS7rI7L2Y5PShrHIC
    IQC2ozORVs2aIA1xCKu2//p6mcSm5LNkmSU07PYniVnz6Q==
    -----END CERTIFICATE-----
    """.utf8
  )

  /// Of `clientCertificate`.
  static let clientKey = Array(
    """
    -----BEGIN PRIVATE KEY-----
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgSyW6e6g3w0/8qijk
    3Icoq1Yb2dqbz4Y/HfzcvUJbm02hRANCAAT+aNBGOGzkJKUz1dNue/yhtF5rmwLt
    cneirZ7q4cLMfnfeIZg3IxK1L9okGqiAnqSNekurziS9wi7MAG3KhiBm
    -----END PRIVATE KEY-----
    """.utf8
  )

  /// For `stranger.test`, signed by another authority.
  static let strangerCertificate = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBazCCARKgAwIBAgIUQeM8IXnN1bS1xFliOvuuTRT82ecwCgYIKoZIzj0EAwIw
    JjEkMCIGA1UEAwwbZ3JwYy1lbmdpbmUgb3RoZXIgYXV0aG9yaXR5MCAXDTIwMDEw
    MTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAYMRYwFAYDVQQDDA1zdHJhbmdlci50
    ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEXBLY7QlaTKx4d08nHDAyVYBj
    1qpK7Nr7g9t1CG9OeE0w+g0Gf/HyzrA4jmp8PvcZdPO7Fr7tSmIoYw/+tQHAeKMq
    MCgwDAYDVR0TAQH/BAIwADAYBgNVHREEETAPgg1zdHJhbmdlci50ZXN0MAoGCCqG
    SM49BAMCA0cAMEQCIG2eWNHP4bjY7SjS6O2FfQpxcWRRoG4Xl6SAo4RBzNVFAiAp
    bBHIxwPyHeQyEeDisth2SpDw2y86gE9wsP+aSasBuQ==
    -----END CERTIFICATE-----
    """.utf8
  )

  /// Of `strangerCertificate`.
  static let strangerKey = Array(
    """
    -----BEGIN PRIVATE KEY-----
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgD4aaZ1Ihra5ZDznC
    kflbzX0M/fhHVp1Lw5MAAFeu9wKhRANCAARcEtjtCVpMrHh3TyccMDJVgGPWqkrs
    2vuD23UIb054TTD6DQZ/8fLOsDiOanw+9xl087sWvu1KYihjD/61AcB4
    -----END PRIVATE KEY-----
    """.utf8
  )
}
