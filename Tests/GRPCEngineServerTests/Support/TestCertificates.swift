/// Keys and certificates for tests, good for nothing else.
///
/// Made once with a start in 2020 and an end in 2120: NIOSSL reads certificates but makes none.
/// All but the stranger's are signed by `authority`.
enum TestCertificates {
  /// Signs the others.
  static let authority = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBYDCCAQegAwIBAgIUXf2J5grPKZ2zH8U4pGtnwyjRIKYwCgYIKoZIzj0EAwIw
    JTEjMCEGA1UEAwwaZ3JwYy1lbmdpbmUgdGVzdCBhdXRob3JpdHkwIBcNMjAwMTAx
    MDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMCUxIzAhBgNVBAMMGmdycGMtZW5naW5l
    IHRlc3QgYXV0aG9yaXR5MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAERq4A8JvI
    AtAgKmyTacH23gjaSIXEpNHcDkTcfAIfxTWsMq4uaBPpBhYITJ6o9RpOmVVeEBMT
    j1zcB6qQj4ap7aMTMBEwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNHADBE
    AiBY6aciHbCpRqzk1OjMsnQ/iOyUkwSurN1UMyzpDbPBDgIgHmKG5NuufR6DKhlS
    Ln3AkxEEKVqyV25QHiyGy/mM5pk=
    -----END CERTIFICATE-----
    """.utf8
  )

  /// For `localhost`, `server.test`, `127.0.0.1`.
  static let serverCertificate = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBeTCCAR6gAwIBAgIUVXFDNqy5rFEEg6Dt5uSaMsaAn/kwCgYIKoZIzj0EAwIw
    JTEjMCEGA1UEAwwaZ3JwYy1lbmdpbmUgdGVzdCBhdXRob3JpdHkwIBcNMjAwMTAx
    MDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBYxFDASBgNVBAMMC3NlcnZlci50ZXN0
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEiGBJvd4o1a9lYb0XXUvNDgmXAQST
    /djORaew3rtink/84wbKMOVsVlPOCGwyJc3ewRJS0224jPPYXz6xDPojtKM5MDcw
    DAYDVR0TAQH/BAIwADAnBgNVHREEIDAegglsb2NhbGhvc3SCC3NlcnZlci50ZXN0
    hwR/AAABMAoGCCqGSM49BAMCA0kAMEYCIQCkSsOoM0qE5OET5q9R/w+eRZ+GRX7t
    OLroDeChuuRsOQIhAN+4hLfj3xMBXzts/5WQG2P1kbze4p2F9g/9FbdYkDqU
    -----END CERTIFICATE-----
    """.utf8
  )

  /// Of `serverCertificate`.
  static let serverKey = Array(
    """
    -----BEGIN PRIVATE KEY-----
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgT4XSwNc9IzlHuIZM
    bjRhtmvIMhyXiNbiQ6aK3MzYHXqhRANCAASIYEm93ijVr2VhvRddS80OCZcBBJP9
    2M5Fp7Deu2KeT/zjBsow5WxWU84IbDIlzd7BElLTbbiM89hfPrEM+iO0
    -----END PRIVATE KEY-----
    """.utf8
  )

  /// For `second.test`, `*.wild.test`.
  static let secondCertificate = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBezCCASCgAwIBAgIUJIqumgk4sf98rguPtljERLTl6XIwCgYIKoZIzj0EAwIw
    JTEjMCEGA1UEAwwaZ3JwYy1lbmdpbmUgdGVzdCBhdXRob3JpdHkwIBcNMjAwMTAx
    MDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBYxFDASBgNVBAMMC3NlY29uZC50ZXN0
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEv3qfsSKjpeSoDkFKsxFka7XWvvHE
    bJGvAp0fNBzw8FXgAqod15Py+euxJmXrXbTCBKCZNl9dyoE6AXK/vFbT56M7MDkw
    DAYDVR0TAQH/BAIwADApBgNVHREEIjAgggtzZWNvbmQudGVzdIILKi53aWxkLnRl
    c3SHBH8AAAEwCgYIKoZIzj0EAwIDSQAwRgIhAP3m/lWnArRrX4yq1xIz31qVCVDX
    tcI6Wml+jp5lCYSbAiEA/vhpFOaF9bRSj8ueezfsgthjiplCGfHlKeiLyY74soY=
    -----END CERTIFICATE-----
    """.utf8
  )

  /// Of `secondCertificate`.
  static let secondKey = Array(
    """
    -----BEGIN PRIVATE KEY-----
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgzyvoAP/ALGIVfB2n
    Soy9QimTkepF/UlZJZHurqbKpuyhRANCAAS/ep+xIqOl5KgOQUqzEWRrtda+8cRs
    ka8CnR80HPDwVeACqh3Xk/L567EmZetdtMIEoJk2X13KgToBcr+8VtPn
    -----END PRIVATE KEY-----
    """.utf8
  )

  /// For `client.test`.
  static let clientCertificate = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBbjCCAROgAwIBAgIUGKIcY3hr48KAFk2iBJSyu5l1DUcwCgYIKoZIzj0EAwIw
    JTEjMCEGA1UEAwwaZ3JwYy1lbmdpbmUgdGVzdCBhdXRob3JpdHkwIBcNMjAwMTAx
    MDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBYxFDASBgNVBAMMC2NsaWVudC50ZXN0
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEcpaVRktcEzyWI9T8zdcyPY9w0POQ
    dn6yw9v0is+knpvDwLgdlz/rlRMLh3ZEK6XHC3+aVfNJFDCZITQraclakqMuMCww
    DAYDVR0TAQH/BAIwADAcBgNVHREEFTATggtjbGllbnQudGVzdIcEfwAAATAKBggq
    hkjOPQQDAgNJADBGAiEAsbcvHtB1pZnubIHjJQECi5Cf88f9/8XZZs6gOzVkAWQC
    IQD7kFcz1AK/R9mOjaRD3CagfSeZzuIM0EpwwYdJBeuKbg==
    -----END CERTIFICATE-----
    """.utf8
  )

  /// Of `clientCertificate`.
  static let clientKey = Array(
    """
    -----BEGIN PRIVATE KEY-----
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgkQybeXlIVZhjOgeo
    Yq/Co0A/ri/vIxSxgwPs6BbfbfuhRANCAARylpVGS1wTPJYj1PzN1zI9j3DQ85B2
    frLD2/SKz6Sem8PAuB2XP+uVEwuHdkQrpccLf5pV80kUMJkhNCtpyVqS
    -----END PRIVATE KEY-----
    """.utf8
  )

  /// For `stranger.test`, signed by another authority.
  static let strangerCertificate = Array(
    """
    -----BEGIN CERTIFICATE-----
    MIIBcTCCARigAwIBAgIUO+ZhBmC8AVoqgeZXOcLpopRMLCMwCgYIKoZIzj0EAwIw
    JjEkMCIGA1UEAwwbZ3JwYy1lbmdpbmUgb3RoZXIgYXV0aG9yaXR5MCAXDTIwMDEw
    MTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAYMRYwFAYDVQQDDA1zdHJhbmdlci50
    ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEplz8gb2VxSjTBtUW2ORRL6Ih
    M4a7+7xOZ2Y8MQEDRrUYW2Aga2VWdELiLSY3DRPrRx/8bp6F4AgjW/mLupD/aqMw
    MC4wDAYDVR0TAQH/BAIwADAeBgNVHREEFzAVgg1zdHJhbmdlci50ZXN0hwR/AAAB
    MAoGCCqGSM49BAMCA0cAMEQCIDacAHkbS289ubEXwMUsug2f6CQwq6853Xw62SMU
    cuDKAiBEdTHPWnKleqJ9CwKqQFTzKjewvRzxAZnerAgw9lkEeA==
    -----END CERTIFICATE-----
    """.utf8
  )

  /// Of `strangerCertificate`.
  static let strangerKey = Array(
    """
    -----BEGIN PRIVATE KEY-----
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgcX3Wu0Mbdd9LvMok
    pLDUpyWQoYfYN27fJlyT83LjxD2hRANCAASmXPyBvZXFKNMG1RbY5FEvoiEzhrv7
    vE5nZjwxAQNGtRhbYCBrZVZ0QuItJjcNE+tHH/xunoXgCCNb+Yu6kP9q
    -----END PRIVATE KEY-----
    """.utf8
  )
}
